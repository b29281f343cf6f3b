"""Text that the policy writes itself: rows to replay, and answers in place of the data's."""
