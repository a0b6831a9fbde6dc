// SPDX-License-Identifier: Apache-2.0

// Package kernel tests driver/link and bpf against the running kernel.
package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/driver/link"
)

// inside says in the environment that the process has namespaces of its own.
const inside = "MUSTANG_TEST_INSIDE"

// TestMain runs the tests in namespaces of their own, which end with them.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "tests/kernel makes devices in namespaces of its own: run it as root")
		os.Exit(1)
	}
	if os.Getenv(inside) != "" {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "make namespaces for the tests:", err)
		os.Exit(1)
	}
}

// prepare mounts what shows the new namespaces and keeps `ip netns` and pins off the host.
func prepare() error {
	for _, m := range []struct {
		kind, on string
		data     string
	}{{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"tmpfs", "/run", ""}, {"bpf", "/sys/fs/bpf", "mode=0700"}, {"cgroup2", "/sys/fs/cgroup", ""}} {
		if err := unix.Mount(m.kind, m.on, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.on, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

var host link.Host

// run runs a command and returns its output.
func run(t *testing.T, command string) string {
	t.Helper()
	args := strings.Fields(command)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s: %s", command, out)
	return string(out)
}

// netns makes a namespace and returns its path.
func netns(t *testing.T, name string) string {
	t.Helper()
	run(t, "ip netns add "+name)
	t.Cleanup(func() { run(t, "ip netns del "+name) })
	return "/run/netns/" + name
}

// begin asserts that the test leaves the namespace as it found it.
func begin(t *testing.T) {
	t.Helper()
	before := everything(t)
	t.Cleanup(func() { require.Equal(t, before, everything(t), "nothing is left behind") })
}

func everything(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	links, err := netlink.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		fmt.Fprintln(&out, l.Attrs().Name)
	}
	for _, what := range []string{"ip -4 route", "ip -6 route", "ip neigh show nud permanent"} {
		out.WriteString(run(t, what))
	}
	return out.String()
}

const owner = "0123456789abcdef"

var mac = net.HardwareAddr{0x02, 0x42, 10, 0, 0, 2}

func pair() link.Pair {
	return link.Pair{Owner: owner, Type: link.TypeVeth, Host: "mst01234567890", Peer: "msp01234567890", MTU: 1400, MAC: mac}
}

// newPair makes the pair and removes it at the end.
func newPair(t *testing.T) link.Device {
	t.Helper()
	dev, err := host.CreatePair(pair())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, host.Delete(pair().Host, owner)) })
	return dev
}
