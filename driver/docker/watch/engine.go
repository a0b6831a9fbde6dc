// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// errStopped keeps us from starting an engine that somebody has stopped.
var errStopped = errors.New("the engine is stopped: the service manager alone listens at its socket, and would start it for who connects")

// stopped tells whether process 1 listens at a socket for an engine that does not run, or has closed it to stop. One that
// cannot be looked at is taken to be no such socket.
func stopped(socket string) bool {
	listeners := listening("/proc/net/unix", filepath.Base(socket))
	if len(listeners) == 0 || !holds("/proc/1", listeners) {
		return false
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return false
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(comm)) == "dockerd" && holds(filepath.Dir(name), listeners) {
			return false
		}
	}
	return true
}

// listening are the listening sockets of that name, as the entries of /proc/PID/fd have them. Their directories may be
// written in several ways (/run and /var/run).
func listening(table, name string) map[string]bool {
	const flags, inode, path = 3, 6, 7 // columns
	const accepts = "00010000"
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	found := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > path && fields[flags] == accepts && filepath.Base(fields[path]) == name {
			found["socket:["+fields[inode]+"]"] = true
		}
	}
	return found
}

// holds tells whether a process has one of the files open.
func holds(process string, files map[string]bool) bool {
	fds, err := filepath.Glob(process + "/fd/*")
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && files[to] {
			return true
		}
	}
	return false
}
