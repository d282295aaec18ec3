"""What runs on each rank, and the actor between ranks and driver.

| module | what it holds |
|---|---|
| worker_config | what the driver passes to every rank |
| entry | the function that Ray Train calls on every rank |
| train_loop | the loop: batch, step, metrics, checkpoint, evaluation |
| train_state | network, optimizer and weight average: build, step, restore |
| loaders | the job's data section as loaders |
| process_group | torch's process group over the right network interface |
| step_metrics | metrics of steps: collect, all-reduce, check, log |
| system_metrics | CPU, memory, network, disk and GPU use of a node |
| checkpoint_writer | checkpoints written in the background |
| final_network | the graph of a run's final weights, as a file |
| not_finite | steps whose loss was not finite |
| progress_actor | the ranks' progress, and the driver's commands to them |
"""
