"""`align import`: the files of LLaMA-Factory, Axolotl and TRL as recipes, with what became of every key."""
