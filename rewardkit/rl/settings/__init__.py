"""A row of the table of algorithms as frozen settings: sections, rules that refuse contradictions, presets."""
