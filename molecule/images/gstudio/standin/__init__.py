"""The stand-in's own package: invents a school's data, and plays the programs of the real container."""
