"""YAML files that cannot be read are refused in one line: by itself, Hydra shows how it came to read them."""

from __future__ import annotations

from hydra._internal.core_plugins import file_config_source
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig


class FileConfigSource(file_config_source.FileConfigSource):
    """A folder of YAML files, `conf/` or one of `hydra.searchpath`. Hydra tells sources apart by the class's name."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one file.

        Raises:
            ConfigCompositionException: naming the file and the line; Hydra shows its message alone.
        """
        file = f"{self.path}/{self._normalize_file_name(config_path)}"
        try:
            result = super().load_config(config_path)
        except Exception as error:  # the parser's, the decoder's or the file system's
            why = " ".join(str(error).split())
            raise ConfigCompositionException(f"{file} is no YAML that can be read; mend it: {why}") from error
        if not isinstance(result.config, DictConfig):
            raise ConfigCompositionException(f"{file} must hold keys and values, as the files in conf/ do")
        return result
