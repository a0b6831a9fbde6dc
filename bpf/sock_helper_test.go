// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The socket hooks see only what runs in their cgroup. A helper process sits there and makes system calls
// that the test asks for, one line of JSON each way.

type call struct {
	Op     string         // see helperCall
	FD     int            // from an earlier socket call
	Family int            // of a new socket
	Type   int            // SOCK_STREAM or SOCK_DGRAM
	Addr   netip.AddrPort // of connect, bind, sendto
}

type outcome struct {
	Errno int
	FD    int
	Addr  netip.AddrPort
	Data  string
	Value uint64
}

// runHelper is the helper's main.
func runHelper(cgroup string) int {
	procs := filepath.Join(cgroup, "cgroup.procs")
	if err := os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		fmt.Fprintln(os.Stderr, "move the helper:", err)
		return 1
	}
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		var c call
		if err := in.Decode(&c); err != nil {
			return 0
		}
		if err := out.Encode(helperCall(c)); err != nil {
			return 1
		}
	}
}

func helperCall(c call) outcome {
	var o outcome
	var err error
	var sa unix.Sockaddr
	switch c.Op {
	case "cookie":
		var fd int
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err == nil {
			o.Value, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
			unix.Close(fd)
		}
	case "socket":
		o.FD, err = unix.Socket(c.Family, c.Type|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			tv := unix.Timeval{Sec: 2}
			_ = unix.SetsockoptTimeval(o.FD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
			err = unix.SetsockoptInt(o.FD, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
	case "connect":
		err = unix.Connect(c.FD, sockaddr(c.Family, c.Addr))
	case "bind":
		err = unix.Bind(c.FD, sockaddr(c.Family, c.Addr))
	case "listen":
		err = unix.Listen(c.FD, 8)
	case "accept":
		o.FD, sa, err = unix.Accept(c.FD)
	case "sendto":
		err = unix.Sendto(c.FD, []byte("hello"), 0, sockaddr(c.Family, c.Addr))
	case "send":
		_, err = unix.Write(c.FD, []byte("hello"))
	case "recvfrom":
		b := make([]byte, 64)
		var n int
		n, sa, err = unix.Recvfrom(c.FD, b, 0)
		o.Data = string(b[:max(n, 0)])
	case "echo": // sends back what comes to a server
		b := make([]byte, 64)
		var n int
		if n, sa, err = unix.Recvfrom(c.FD, b, 0); err == nil {
			err = unix.Sendto(c.FD, b[:n], 0, sa)
		}
	case "getpeername":
		sa, err = unix.Getpeername(c.FD)
	case "getsockname":
		sa, err = unix.Getsockname(c.FD)
	case "close":
		err = unix.Close(c.FD)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		o.Errno = int(errno)
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		o.Addr = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		o.Addr = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return o
}

func sockaddr(family int, a netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// sandbox is the test's network namespace as the hooks see it, with a helper in the hooks' cgroup.
type sandbox struct {
	*testing.T
	in     *json.Encoder
	out    *json.Decoder
	pid    int // of the helper
	cookie uint64
	world  *world
}

// newSandbox attaches the hooks to a cgroup of its own and starts the helper there; both go with the test.
func newSandbox(t *testing.T) *sandbox {
	root, err := CgroupRoot()
	require.NoError(t, err)
	cgroup, err := os.MkdirTemp(root, "mustang-bpf-test-")
	require.NoError(t, err)
	require.NoError(t, testDP.AttachSock(cgroup))
	require.NoError(t, testDP.AttachSock(cgroup), "attaching again replaces the programs")

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envHelper+"="+cgroup)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		require.NoError(t, cmd.Wait())
		for name := range sockHooks {
			require.NoError(t, os.Remove(filepath.Join(testDP.dir, "mst_link_"+name)))
		}
		require.Eventually(t, func() bool { return os.Remove(cgroup) == nil }, 2*time.Second, 10*time.Millisecond)
		clearMaps(t)
	})
	s := &sandbox{T: t, in: json.NewEncoder(stdin), out: json.NewDecoder(stdout), pid: cmd.Process.Pid}
	s.cookie = s.do(call{Op: "cookie"}).Value
	return s
}

// begin starts a test from empty maps and a sandbox that is a member of network 1.
func (s *sandbox) begin(t *testing.T, v6 bool, options ...func(*Sandbox)) *sandbox {
	c := *s
	c.T, c.world = t, newWorld(t, v6)
	sb := Sandbox{Cookie: s.cookie, SocketLB: true, Tracked: true}
	for _, o := range options {
		o(&sb)
	}
	require.NoError(t, testDP.PutSandbox(sb))
	require.NoError(t, testDP.PutMember(s.cookie, network1))
	return &c
}

func (s *sandbox) do(c call) outcome {
	s.Helper()
	require.NoError(s, s.in.Encode(c))
	var o outcome
	require.NoError(s, s.out.Decode(&o))
	return o
}

// sock is a socket of the helper.
type sock struct {
	s      *sandbox
	fd     int
	family int
}

func (s *sandbox) socket(family, typ int) sock {
	s.Helper()
	o := s.do(call{Op: "socket", Family: family, Type: typ})
	require.Zero(s, o.Errno)
	k := sock{s, o.FD, family}
	s.Cleanup(func() { s.do(call{Op: "close", FD: k.fd}) })
	return k
}

func (k sock) do(op string, addr ...netip.AddrPort) outcome {
	k.s.Helper()
	c := call{Op: op, FD: k.fd, Family: k.family}
	if len(addr) > 0 {
		c.Addr = addr[0]
	}
	return k.s.do(c)
}

// ok makes a call that must succeed; fails one that must not.
func (k sock) ok(op string, addr ...netip.AddrPort) outcome {
	k.s.Helper()
	o := k.do(op, addr...)
	require.Zero(k.s, o.Errno, "%s %v: %v", op, addr, syscall.Errno(o.Errno))
	return o
}

func (k sock) fails(errno syscall.Errno, op string, addr ...netip.AddrPort) {
	k.s.Helper()
	o := k.do(op, addr...)
	require.Equal(k.s, errno, syscall.Errno(o.Errno), "%s %v: %v", op, addr, syscall.Errno(o.Errno))
}

// server is a socket bound to addr, listening if it is a stream's.
func (s *sandbox) server(family, typ int, addr netip.AddrPort) (sock, netip.AddrPort) {
	s.Helper()
	k := s.socket(family, typ)
	k.ok("bind", addr)
	if typ == unix.SOCK_STREAM {
		k.ok("listen")
	}
	return k, k.ok("getsockname").Addr
}

// listeners reads mst_listeners by port.
func (s *sandbox) listeners() map[uint16]uint32 {
	s.Helper()
	out := map[uint16]uint32{}
	var key mstListenerKey
	var n uint32
	it := testDP.maps["listeners"].Iterate()
	for it.Next(&key, &n) {
		require.Equal(s, s.cookie, key.Cookie)
		if n > 0 {
			out[be(key.Port)] = n
		}
	}
	require.NoError(s, it.Err())
	return out
}

// addLocal gives lo addresses that are not of 127.0.0.0/8, which mst_listeners leaves out.
func addLocal(t *testing.T, addrs ...netip.Addr) {
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	for _, a := range addrs {
		network := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		require.NoError(t, netlink.AddrReplace(lo, &netlink.Addr{IPNet: network, Flags: unix.IFA_F_NODAD}))
		// IPv6 makes an address the host's own in a worker of the kernel's
		require.Eventually(t, func() bool {
			routes, err := netlink.RouteGet(a.AsSlice())
			return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
		}, 10*time.Second, time.Millisecond, "%s did not become the host's own", a)
	}
	pool := &net.IPNet{IP: net.IPv4(10, 96, 0, 0), Mask: net.CIDRMask(16, 32)}
	require.NoError(t, netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: pool, Scope: unix.RT_SCOPE_LINK}))
}
