/* terminal.h - the terminal in raw mode, and given back whatever happens. */
#ifndef VMCTL_TERMINAL_H
#define VMCTL_TERMINAL_H

/* Makes the terminal on stdin raw; nothing happens when stdin is none. From now on it is restored when vmctl exits, is
 * ended by a signal (also by a crash), and while it is stopped. Call once. */
void terminal_raw(void);

/* Gives the terminal back as it was. */
void terminal_restore(void);

#endif
