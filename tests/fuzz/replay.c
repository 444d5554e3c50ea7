/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzzer's entry point over files or folders of files, once each: how the corpus is an
 * ordinary test with any compiler.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *path)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    uint8_t *data;

    if (!f || fstat(fileno(f), &st) != 0) {
        perror(path);
        return -1;
    }
    data = malloc((size_t)st.st_size + 1);
    if (!data || fread(data, 1, (size_t)st.st_size, f) != (size_t)st.st_size) {
        perror(path);
        return -1;
    }
    fclose(f);
    LLVMFuzzerTestOneInput(data, (size_t)st.st_size);
    free(data);
    return 0;
}

static int run_folder(const char *path, unsigned *nr_run)
{
    DIR *dir = opendir(path);
    struct dirent *de;

    if (!dir) {
        perror(path);
        return -1;
    }
    while ((de = readdir(dir))) {
        char file[4096];

        if (de->d_name[0] == '.')
            continue;
        snprintf(file, sizeof(file), "%s/%s", path, de->d_name);
        if (run_file(file) != 0)
            return -1;
        (*nr_run)++;
    }
    closedir(dir);
    return 0;
}

int main(int argc, char **argv)
{
    unsigned nr_run = 0;

    for (int i = 1; i < argc; i++)
        if (run_folder(argv[i], &nr_run) != 0)
            return 1;
    printf("%u inputs\n", nr_run);
    return nr_run > 0 ? 0 : 1; /* an empty corpus tests nothing */
}
