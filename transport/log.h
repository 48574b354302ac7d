/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: stderr in the foreground, the journal (by syslog) as a daemon. One
 * line an event, beginning with the migration and the channel where there is
 * one. The data path counts, it does not log.
 */
#ifndef MIGFS_LOG_H
#define MIGFS_LOG_H

/** log_to_journal - send what follows to syslog instead of stderr; before any thread starts */
void log_to_journal(void);

void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
