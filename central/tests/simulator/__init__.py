"""The simulator of zone sync: real client, stores and server in a world of faults. One seed is one run.

machine     processes with clocks that may die at any write point; all sources of chance and time of a run
line        the way between a school and the centre, and what goes wrong on it
world       the centre, schools and carriers, and what each of them can do
model       what was written, by whom, knowing what; what of it has to be there in the end
invariants  how I1 to I15 are checked (docs/simulator.md)
mutations   faults of other systems, put into ours, to see that they are found
run         one run, many runs, the command line
"""
