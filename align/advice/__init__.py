"""From what a finished run shows to the cause of what went wrong, and the changes of the recipe that help most."""
