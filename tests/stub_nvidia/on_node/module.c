/* A stub of a kernel module: nothing but what modinfo reads. */
#define INFO(key, value) static const char key[] __attribute__((section(".modinfo"), used)) = #key "=" value
INFO(version, VERSION);
INFO(license, LICENCE);
INFO(description, "stub of moehost's tests");
INFO(name, NAME);
INFO(vermagic, "any SMP preempt mod_unload");
