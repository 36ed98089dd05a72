"""Running what was compiled through Relay, in an environment and processes of its own.

here                                             in Relay's environment
environment.py  installs and finds it
process.py      starts a process there           worker.py        answers it
                                                 session.py       runs what was compiled
ksm_hw/measuring/relay_library.py  asks for it   time_library.py  measures a candidate of a tune
"""
