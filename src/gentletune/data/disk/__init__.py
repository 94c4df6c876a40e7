"""What is made of many rows once and stays on disk as Arrow: in their shape (`stored`), and as tokens (`encoded`)."""
