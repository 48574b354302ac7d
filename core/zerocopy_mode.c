/* SPDX-License-Identifier: Apache-2.0 */
/* What the modes are called; see zerocopy_mode.h. */
#include "zerocopy_mode.h"

const char *const zerocopy_mode_names[ZEROCOPY_MODES] = {
    [ZEROCOPY_OFF] = "off",
    [ZEROCOPY_AUTO] = "auto",
    [ZEROCOPY_REQUIRE] = "require",
};
