"""What a job needs, what it will take, and whether this machine has it: looked at before anything is run or written."""
