/* early.c: a library, to be preloaded after ours, so that its fork handlers are registered before and run later: as of an
 * allocator that locks itself, and gives memory back, before a fork. */
#include <pthread.h>

pthread_mutex_t early_mutex = PTHREAD_MUTEX_INITIALIZER;
void (*early_hook)(void);

static void before(void)
{
    if (early_hook)
        early_hook();
    pthread_mutex_lock(&early_mutex);
}

static void after(void) { pthread_mutex_unlock(&early_mutex); }

__attribute__((constructor)) static void early(void) { pthread_atfork(before, after, after); }
