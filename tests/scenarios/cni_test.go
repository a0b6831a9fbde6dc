// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// cni calls plugins as a runtime does: `cni [CAPABILITIES] VERB NETWORK NETNS [-i IFNAME]`, with CAPABILITIES as JSON.
func cni(_ *scenario, dir string, args []string) result {
	argv := []string{"env", "CNI_PATH=/opt/cni/bin", "NETCONFPATH=/etc/cni/net.d"}
	if len(args) > 0 && strings.HasPrefix(args[0], "{") {
		argv, args = append(argv, "CAP_ARGS="+args[0]), args[1:]
	}
	if len(args) < 3 {
		return failure("usage: cni [CAPABILITIES] VERB NETWORK NETNS [-i IFNAME]")
	}
	args = slices.Clone(args)
	args[2] = "/run/netns/" + args[2]
	return run(dir, append(append(argv, "cnitool"), args...)...)
}

// plugin calls mustang's plugin alone, with an environment that need make no sense, and prints what it answers:
// `plugin [KEY=VALUE…] VERB CONFIGURATION CONTAINER NETNS [IFNAME]`. CONFIGURATION is a file; NETNS is a name, a path, or none for an empty one.
func plugin(_ *scenario, dir string, args []string) result {
	argv := []string{"env", "-i", "PATH=" + os.Getenv("PATH"), "CNI_PATH=/opt/cni/bin"}
	for len(args) > 0 && strings.Contains(args[0], "=") {
		argv, args = append(argv, args[0]), args[1:]
	}
	if len(args) < 4 || len(args) > 5 {
		return failure("usage: plugin [KEY=VALUE…] VERB CONFIGURATION CONTAINER NETNS [IFNAME]")
	}
	netns, ifname := args[3], "eth0"
	switch {
	case netns == "none":
		netns = ""
	case !strings.HasPrefix(netns, "/"):
		netns = "/run/netns/" + netns
	}
	if len(args) == 5 {
		ifname = args[4]
	}
	argv = append(argv, "CNI_COMMAND="+strings.ToUpper(args[0]), "CNI_CONTAINERID="+args[2], "CNI_NETNS="+netns, "CNI_IFNAME="+ifname)
	return run(dir, append(argv, "sh", "-c", `exec /opt/cni/bin/mustang <"$0"`, args[1])...)
}

// reserve keeps a port of the host's for a container until the script ends, by a process that never answers, as nerdctl 2.2 does before it calls
// plugins: `reserve ADDRESS`.
func reserve(s *scenario, _ string, args []string) result {
	if len(args) != 1 {
		return failure("usage: reserve ADDRESS")
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return result{err: err}
	}
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		return result{err: err}
	}
	defer socket.Close()
	keeper := exec.Command("sleep", "infinity")
	keeper.ExtraFiles = []*os.File{socket}
	if err := keeper.Start(); err != nil {
		return result{err: err}
	}
	s.onEnd = append(s.onEnd, func() {
		_ = keeper.Process.Kill()
		_ = keeper.Wait()
	})
	return result{}
}
