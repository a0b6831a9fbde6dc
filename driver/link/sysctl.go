// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenSysctls makes /proc/sys writable for this process where it is read-only in a mount namespace of its own, as engines
// make it in the container of a managed plugin, whatever its capabilities. The host's own is left as it is.
func (Host) OpenSysctls() error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/proc/sys", &fs); err != nil || fs.Flags&unix.ST_RDONLY == 0 {
		return err
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("make /proc/sys writable: %w", err)
	}
	if hosts, err := os.Readlink("/proc/1/ns/mnt"); err != nil || hosts == own {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("", "/proc/sys", "", flags, ""); err != nil {
		return fmt.Errorf("make /proc/sys writable: %w: mustang sets what belongs to its devices there, and needs CAP_SYS_ADMIN", err)
	}
	return nil
}
