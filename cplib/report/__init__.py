"""What results say: `stats` compares, `tables` sets beside the paper, `claims` judges, `plots` draws."""
