"""What a model still knows: questions, and statistics over them."""
