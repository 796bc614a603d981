/* Makes dcmtk's storescp keep the promise that hlip's listener makes: what it has written and closes is synced, renamed,
   and its folder synced, before it goes on to answer. Loaded into it by the dynamic linker (LD_PRELOAD). Linux only. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int keep(FILE *file, char *path) {
    char link[64], kept[4200];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fileno(file));
    ssize_t length = readlink(link, path, 4095);
    if (length < 0 || fflush(file) || fsync(fileno(file))) return -1;
    path[length] = 0;
    snprintf(kept, sizeof kept, "%s.kept", path);
    if (rename(path, kept)) return -1;
    *strrchr(path, '/') = 0;
    int folder = open(path, O_RDONLY | O_DIRECTORY);
    int failed = folder < 0 || fsync(folder);
    if (folder >= 0) close(folder);
    return failed ? -1 : 0;
}

int fclose(FILE *file) {
    int (*closes)(FILE *) = (int (*)(FILE *))dlsym(RTLD_NEXT, "fclose");
    struct stat about;
    char path[4096];
    int mode = fcntl(fileno(file), F_GETFL);
    int is_ours = mode >= 0 && (mode & O_ACCMODE) != O_RDONLY && !fstat(fileno(file), &about) && S_ISREG(about.st_mode);
    int failed = is_ours ? keep(file, path) : 0;
    return closes(file) || failed ? EOF : 0;
}
