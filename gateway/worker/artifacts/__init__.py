"""Files from elsewhere: what a reference names, how its bytes come here whole, what they may take of the disk."""
