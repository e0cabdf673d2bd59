/* link.h: the agent's connection to its merger. */
#ifndef UD_LINK_H
#define UD_LINK_H

#include "internal.h"

int ud__link_open(void) UD_HIDDEN;   /* connects, HELLO and SEGMENTs, waits for WELCOME. 0 or -errno */
void ud__link_close(void) UD_HIDDEN;
int ud__link_send(void *msg, uint16_t type, uint32_t len, int fd) UD_HIDDEN;
/* Takes one message if there is one and carries it out. 1, 0 (none), or -errno (connection over). */
int ud__link_serve(void) UD_HIDDEN;
int ud__link_wait(uint64_t us) UD_HIDDEN; /* until a message, a poke, or the time is over */

#endif
