"""The commands of the command line: a file each, which reads options, calls the rooms below and prints."""
