"""Several HTTP processes over one engine process: a supervisor starts them all and keeps them.

    supervisor --+-- worker 1..n   HTTP: parse, ask the engine process, encode   (`worker`, `remote`, `link`)
                 `-- engine        queues, budgets, forward passes, metrics      (`engine`, `hub`, `session`)

Workers talk to the engine process over a Unix socket (`channel`, `frames`, `wire`, `failures`, `standing`), and both to
the supervisor over pipes (`children`, `control`).
"""
