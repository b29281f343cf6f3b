"""What changed between two measurements of the same items, how sure that is, and what it says against a limit."""

from align.forgetting.statistics.changes import Change as Change
from align.forgetting.statistics.changes import PerplexityChange as PerplexityChange
from align.forgetting.statistics.changes import mean_change as mean_change
from align.forgetting.statistics.changes import paired_binary as paired_binary
from align.forgetting.statistics.changes import paired_perplexity as paired_perplexity
from align.forgetting.statistics.family import FAMILY_ERROR as FAMILY_ERROR
from align.forgetting.statistics.family import holm as holm
from align.forgetting.statistics.family import p_beyond as p_beyond
from align.forgetting.statistics.intervals import exp as exp
from align.forgetting.statistics.intervals import mcnemar_exact as mcnemar_exact
from align.forgetting.statistics.intervals import pseudo_item_interval as pseudo_item_interval
from align.forgetting.statistics.intervals import pseudo_items as pseudo_items
from align.forgetting.statistics.intervals import wilson as wilson
from align.forgetting.statistics.limits import Verdict as Verdict
from align.forgetting.statistics.limits import items_to_decide as items_to_decide
from align.forgetting.statistics.limits import verdict as verdict
from align.forgetting.statistics.retention import Retention as Retention
from align.forgetting.statistics.retention import retention as retention
from align.forgetting.statistics.sample_size import items_needed as items_needed
from align.forgetting.statistics.sample_size import smallest_drop as smallest_drop
from align.forgetting.statistics.transfer import Undefined as Undefined
from align.forgetting.statistics.transfer import average_forgetting as average_forgetting
from align.forgetting.statistics.transfer import backward_transfer as backward_transfer
from align.forgetting.statistics.transfer import best_rows as best_rows
