"""The rows of the drill's table that other suites fill in: where only they have what it takes."""

KILLS = "a deploy is killed (SIGKILL) at 50 random moments"
CLOCK = "the clock jumps a year forwards and back"
RESET = "the machine is reset in the middle of a switch of engines"
LEAK = "a program in a service's control group leaks until MemoryMax"

ELSEWHERE = {
    # tests/interrupted
    KILLS: "each next deploy ends well, the service answers; every fifth time one more deploy changes nothing",
    # tests/vm_node: they need a clock and control groups of their own
    CLOCK: "the service goes on, a deploy after each jump changes nothing",
    RESET: "the old release serves after the boot, the next deploy switches",
    LEAK: "the unit says oom-kill and starts again, the machine lives",
}
