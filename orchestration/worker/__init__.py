"""What runs on each rank, and the actor through which ranks and driver talk.

| module | what it holds |
|---|---|
| worker_config | what the driver gives every rank; the entry point of Ray Train |
| train_loop | the loop: batch, step, metrics, checkpoint, evaluation |
| train_state | network, optimizer and weight average: built, stepped, restored |
| loaders | the job's data section as loaders |
| process_group | torch's process group over the right network interface |
| step_metrics | metrics of steps: collected, all-reduced, reported |
| system_metrics | CPU, memory, network, disk and GPU use of a node |
| checkpoint_writer | checkpoints written in the background |
| final_network | the exported graph of a run's final weights |
| not_finite | steps whose loss was not finite |
| progress_actor | the newest progress, and commands to the ranks |
"""
