"""Where it is computed: memory, devices, files, and a record of the machine."""
