// A 32-bit process without a library, so that none is needed to build it.
void _start(void) {
    for (;;)
        ;
}
