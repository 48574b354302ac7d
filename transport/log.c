/* SPDX-License-Identifier: Apache-2.0 */
/* The log; see log.h. What a peer says can be part of a line: what is no plain text is replaced. */
#include "log.h"
#include "text.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <syslog.h>

/* Written before any thread starts, read by all. */
static bool journal;

void log_to_journal(void)
{
    openlog("migfs", LOG_PID, LOG_DAEMON);
    journal = true;
}

static void log_line(int priority, const char *fmt, va_list ap)
{
    char line[1024];

    vsnprintf(line, sizeof(line), fmt, ap);
    text_make_plain(line);
    if (journal)
        syslog(priority, "%s", line);
    else
        fprintf(stderr, "migfs: %s\n", line);
}

void log_info(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    log_line(LOG_INFO, fmt, ap);
    va_end(ap);
}

void log_error(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    log_line(LOG_ERR, fmt, ap);
    va_end(ap);
}
