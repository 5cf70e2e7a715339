"""Compose the configuration, hand it over, exit with the right code. `python run.py --help` shows the choices."""

import signal
import sys

import hydra
from omegaconf import DictConfig

from engram_exp.campaign.campaign import EXIT_FAILED, Campaign
from engram_exp.campaign.preflight import EXIT_REFUSED
from engram_exp.campaign.process import exit_code, stop_on
from engram_exp.config.schema import register_schema


def main() -> int:
    """Run what the command line asks for: 0 all rows are good, 1 a run failed, 2 refused, 3 nothing of a sweep could be
    measured; stopped by a signal, 128 and its number: 130 after Ctrl-C, 143 after SIGTERM."""
    stop_on(signal.SIGTERM, signal.SIGHUP)
    register_schema()
    campaign = Campaign()

    @hydra.main(version_base="1.3", config_path="conf", config_name="config")
    def compose(config: DictConfig) -> None:
        campaign.take(config)

    try:
        compose()
        campaign.run()
    except KeyboardInterrupt as stopped:
        campaign.finish()
        return exit_code(stopped)
    except SystemExit as stopped:  # Hydra, the checks or the command line's parser have said why
        if stopped.code:
            return (campaign.finish() or EXIT_FAILED) if campaign.launched_into else EXIT_REFUSED
    return campaign.finish()


if __name__ == "__main__":
    sys.exit(main())
