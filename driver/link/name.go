// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// CheckName refuses what the kernel takes for no device's name, and what would lead out of the directory that a
// device has in /proc/sys. The error goes on from the name.
func CheckName(name string) error {
	bad := func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == ':' }
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("must be a device name of 1 to %d characters without blanks, colons and slashes", unix.IFNAMSIZ-1)
	}
	return nil
}
