// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// by names the process that has a port, " by nginx (pid 4711)", or is empty where nobody can tell.
func by(p Port) string {
	pid := holder(p)
	if pid == "" {
		return ""
	}
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return "" // it has ended
	}
	return fmt.Sprintf(" by %s (pid %s)", strings.TrimSpace(string(name)), pid)
}

// reserved tells whether the process that has a port only keeps it from others, as nerdctl's does for a container's
// ports since its version 2.2: it would never answer.
func reserved(p Port) bool {
	pid := holder(p)
	if pid == "" {
		return false
	}
	line, err := os.ReadFile("/proc/" + pid + "/cmdline")
	return err == nil && string(line) == "sleep\x00infinity\x00"
}

// holder is the id of the process that has a port, "" where nobody can tell.
func holder(p Port) string {
	inode := socketOf(p)
	if inode == "" {
		return ""
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	for _, process := range processes {
		pid := process.Name()
		if _, err := strconv.ParseUint(pid, 10, 32); err == nil && has(pid, inode) {
			return pid
		}
	}
	return ""
}

// has tells whether a process has the socket open.
func has(pid, inode string) bool {
	dir := filepath.Join("/proc", pid, "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false // it has ended
	}
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && target == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

// socketOf finds the inode of the socket that keeps others from the port, if the kernel lists it (proc_net_tcp(5)).
func socketOf(p Port) string {
	found, best := "", 0
	protocol := "tcp"
	if p.udp() {
		protocol = "udp"
	}
	for _, suffix := range []string{"", "6"} {
		f, err := os.Open("/proc/self/net/" + protocol + suffix)
		if err != nil {
			continue
		}
		if inode, score := scan(f, p); score > best {
			found, best = inode, score
		}
		f.Close()
	}
	return found
}

// scan finds the socket in a table that is most likely the one: of the port's own family, and one that listens, or
// that is not connected.
func scan(table io.Reader, p Port) (inode string, best int) {
	const listen, unconnected, connected = "0A", "07", "01"
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[9] == "0" {
			continue
		}
		local, ok := localOf(fields[1])
		if !ok || local.Port() != p.Addr.Port() || !overlap(local.Addr(), p.Addr.Addr()) {
			continue
		}
		score := 1
		switch fields[3] {
		case listen, unconnected:
			score = 3
		case connected:
			score = 2
		}
		score *= 2
		if local.Addr().Is4() == p.Addr.Addr().Is4() {
			score++
		}
		if score > best {
			inode, best = fields[9], score
		}
	}
	return inode, best
}

// overlap tells whether a socket of theirs may be in the way of ours, which is of its own family only.
func overlap(theirs, ours netip.Addr) bool {
	if theirs.Is4() != ours.Is4() {
		return theirs.Is6() && theirs.IsUnspecified() // it may have every IPv4 address as well
	}
	return theirs == ours || theirs.IsUnspecified() || ours.IsUnspecified()
}

// localOf reads an address of the table: words in the host's order of bytes, and a port.
func localOf(s string) (netip.AddrPort, bool) {
	words, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(words)
	number, portErr := strconv.ParseUint(port, 16, 16)
	if err != nil || portErr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(number)), ok
}
