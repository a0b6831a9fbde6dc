// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// by names the process that has a port, " by nginx (pid 4711)", or is empty where nobody can tell.
func by(p Port) string {
	inode := socketOf(p)
	if inode == "" {
		return ""
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != "socket:["+inode+"]" {
			continue
		}
		pid := strings.Split(link, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		return fmt.Sprintf(" by %s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}

// socketOf finds the inode of a socket that is bound to the port (proc_net_tcp(5)): to its address, or to all.
func socketOf(p Port) string {
	for _, suffix := range []string{"", "6"} {
		f, err := os.Open("/proc/self/net/" + p.Protocol + suffix)
		if err != nil {
			continue
		}
		inode := scan(f, p)
		f.Close()
		if inode != "" {
			return inode
		}
	}
	return ""
}

func scan(f *os.File, p Port) string {
	const listen, unconnected = "0A", "07"
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != listen && (p.Protocol != "udp" || fields[3] != unconnected) {
			continue
		}
		_, hex, ok := strings.Cut(fields[1], ":")
		port, err := strconv.ParseUint(hex, 16, 16)
		if ok && err == nil && uint16(port) == p.Addr.Port() {
			return fields[9]
		}
	}
	return ""
}
