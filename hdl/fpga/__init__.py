"""Place and route of the whole core on the parts that the machine presets name, with open tools."""
