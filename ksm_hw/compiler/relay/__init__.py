"""The compiler through Relay, TVM 0.19: in a process of an environment of its own, for both TVMs own the name `tvm`.

here                                      in Relay's environment
process.py      starts a process there    worker.py         answers it
compile.py      asks it to compile        compile_tasks.py  does, with lower.py and tvm_passes/relay
tune.py         asks it to tune           tune_operators.py does, with build_candidates.py
                                          autotvm_operators.py, meta_schedule_operators.py: the searches
                                          tuned_schedules.py    gives the compiler what they found

What was compiled is run, and candidates are measured, through `ksm_hw/runtime/relay/`.
"""
