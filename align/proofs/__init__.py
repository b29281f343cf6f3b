"""What every launch proves of itself, so that one that trains something else fails instead of ending well."""
