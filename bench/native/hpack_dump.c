// Decodes header blocks for the tests: one block in hexadecimal a line, in the order in which one connection had them.
#include "hpack.h"

static void print_header(void *to, const char *name, const char *value) {
    (void)to;
    printf("%s\t%s\n", name, value);
}

int main(void) {
    static char line[1 << 20];
    static uint8_t block[1 << 19];
    Hpack hpack = {.limit = HPACK_TABLE_BYTES};
    hpack_prepare();
    while (fgets(line, sizeof line, stdin)) {
        size_t size = strspn(line, "0123456789abcdef") / 2;
        for (size_t i = 0; i < size; i++) sscanf(line + 2 * i, "%2hhx", &block[i]);
        puts(hpack_decode(&hpack, block, size, print_header, NULL) ? "error" : "");
    }
    return 0;
}
