// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests run as root in a mount and network namespace of their own, with a BPF filesystem and
// devices that vanish with them: nothing of the host is touched, except a cgroup of the socket tests.

const (
	envNamespaced = "MUSTANG_BPF_TEST_NAMESPACED"
	envHelper     = "MUSTANG_BPF_TEST_HELPER"
)

var (
	testDP    *Datapath // one for all tests: each starts from empty maps
	testBPFFS string
	clientIf  int // host ends of veth pairs
	backendIf int
	uplinkIf  int // leads out
)

func TestMain(m *testing.M) {
	if name := os.Getenv(envHelper); name != "" {
		os.Exit(runHelper(name))
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of bpf/ load programs into the kernel: run `make test-packets` as root")
		os.Exit(1)
	}
	if os.Getenv(envNamespaced) == "" {
		os.Exit(reexec())
	}
	code, err := runNamespaced(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up the tests of bpf/:", err)
		code = 1
	}
	os.Exit(code)
}

// reexec runs the same test binary in new namespaces: a Go process cannot move all of its threads.
func reexec() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), envNamespaced+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "run the tests of bpf/ in namespaces of their own:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

func runNamespaced(m *testing.M) (code int, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 1, fmt.Errorf("make the mounts private: %w", err)
	}
	// where the host's is, a place for one of each worker of the fuzz test, which run in the same namespaces
	const place = "/sys/fs/bpf"
	if !slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzzworker") }) {
		if err := unix.Mount("tmpfs", place, "tmpfs", 0, "mode=0700"); err != nil {
			return 1, fmt.Errorf("cover %s: %w", place, err)
		}
	}
	if testBPFFS, err = os.MkdirTemp(place, "test-"); err != nil {
		return 1, err
	}
	if err := unix.Mount("bpf", testBPFFS, "bpf", 0, "mode=0700"); err != nil {
		return 1, fmt.Errorf("mount a BPF filesystem: %w", err)
	}
	defer unix.Unmount(testBPFFS, 0)
	if err := makeDevices(); err != nil {
		return 1, fmt.Errorf("make the veth pairs: %w", err)
	}
	if testDP, err = Open(testBPFFS); err != nil {
		return 1, err
	}
	defer testDP.Close()
	if err := testDP.Load(); err != nil {
		return 1, err
	}
	code = m.Run()
	if err := RemoveAll(testBPFFS); err != nil {
		return 1, err
	}
	if left, err := os.ReadDir(testDP.dir); err != nil || len(left) > 0 {
		return 1, fmt.Errorf("pins are left after RemoveAll: %v %w", left, err)
	}
	return code, nil
}

func makeDevices() error {
	// workers of the fuzz test find the devices of their parent
	for host, index := range map[string]*int{"mst-client": &clientIf, "mst-backend": &backendIf, "mst-uplink": &uplinkIf} {
		veth := netlink.NewVeth(netlink.NewLinkAttrs())
		veth.Name, veth.PeerName = host, host+"-p"
		if err := netlink.LinkAdd(veth); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		for _, name := range []string{host, host + "-p"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
			if name == host {
				*index = l.Attrs().Index
			}
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return makeWayOut()
}

// makeWayOut gives the host an address on the uplink and a default route by it, and lets endpoints forward.
func makeWayOut() error {
	for _, v6 := range []bool{false, true} {
		a := addressesOf(v6)
		family, everywhere := "ipv4", "0.0.0.0/0"
		if v6 {
			family, everywhere = "ipv6", "::/0"
		}
		for _, device := range []string{"mst-client", "mst-backend"} {
			file := "/proc/sys/net/" + family + "/conf/" + device + "/forwarding"
			if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
				return err
			}
		}
		bits := a.host.BitLen()
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.host.AsSlice(), Mask: net.CIDRMask(bits-8, bits)}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrReplace(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: uplinkIf}}, addr); err != nil {
			return err
		}
		_, all, err := net.ParseCIDR(everywhere)
		if err != nil {
			return err
		}
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: uplinkIf, Dst: all, Gw: a.router.AsSlice(), Flags: unix.RTNH_F_ONLINK}); err != nil {
			return err
		}
	}
	return nil
}
