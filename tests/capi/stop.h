// A thread that stops a call of another one, once that is under way.
#ifndef STOP_H
#define STOP_H

#include "check.h"

#include <pthread.h>

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool has_started, is_set;
    lg_cancel *cancel;
} Stop;

// For the other thread: sets the cancel object when the call has started.
static inline void *stop(void *user)
{
    Stop *state = user;
    pthread_mutex_lock(&state->mutex);
    while (!state->has_started)
        pthread_cond_wait(&state->changed, &state->mutex);
    lg_cancel_set(state->cancel);
    state->is_set = true;
    pthread_cond_signal(&state->changed);
    pthread_mutex_unlock(&state->mutex);
    return NULL;
}

// For the call's thread: has the other thread set the cancel object.
static inline void wait_until_set(Stop *state)
{
    pthread_mutex_lock(&state->mutex);
    state->has_started = true;
    pthread_cond_signal(&state->changed);
    while (!state->is_set)
        pthread_cond_wait(&state->changed, &state->mutex);
    pthread_mutex_unlock(&state->mutex);
}

#endif
