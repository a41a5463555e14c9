"""What results say: `aucs` reads them, `tables` averages and compares, `stats` and `claims` judge, `plots` draws."""
