"""Pictures and pages of search results, model explanations, training curves and ranks."""
