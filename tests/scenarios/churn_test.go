// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// churn makes and removes again and again, 32 at once, and compares what is held after the rounds: `churn endpoints NETWORK`, where the
// script plays the engine on the plugin's socket, with real devices and sandboxes, or `churn containers NETWORK`, where it asks the engine.
func churn(_ *scenario, _ string, args []string) result {
	if len(args) != 2 {
		return failure("usage: churn endpoints|containers NETWORK")
	}
	switch args[0] {
	case "endpoints":
		return churnEndpoints(args[1])
	case "containers":
		return churnContainers(args[1])
	}
	return failure("churn %s: choose endpoints or containers", args[0])
}

// rounds runs a round again and again as far as there is time, four times at least, and judges what is held after each but the first, which is for
// what is opened at its first use.
func (f *figures) rounds(wanted int, round func(i int) error) error {
	begin := time.Now()
	if err := round(0); err != nil {
		return fmt.Errorf("the first round: %w", err)
	}
	base, err := rested()
	if err != nil {
		return err
	}
	var after []held
	for i := 1; i < wanted && (i < 4 || !outOfTime()); i++ {
		if err := round(i); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
		now, err := settled(base)
		if err != nil {
			return err
		}
		after = append(after, now)
	}
	f.state("rounds", fmt.Sprintf("%d in %s, the first of which is not judged", 1+len(after), time.Since(begin).Round(time.Second)))
	if 1+len(after) < wanted {
		f.state("unfinished", fmt.Sprintf("the time did not suffice for %d rounds", wanted))
	}
	f.flat(base, after)
	return f.collected(base)
}

func churnContainers(network string) result {
	n := number("SOAK_CONTAINERS", 8)
	f := &figures{promise: "churn of containers"}
	f.state("docker run and docker rm a round, at most 32 at once", fmt.Sprint(n))
	err := f.rounds(number("SOAK_CONTAINER_ROUNDS", 4), func(round int) error {
		return inCrowd(n, func(i int) error {
			name := fmt.Sprintf("churn-%d-%d", round, i)
			r := run("/", "docker", "run", "--detach", "--init", "--name", name, "--network", network, "--network-alias", "crowd", "mustang-test", "sleep", "infinity")
			if r.err == nil {
				r = run("/", "docker", "rm", "--force", name)
			}
			if r.err != nil {
				return fmt.Errorf("%w: %s", r.err, r.stderr)
			}
			return nil
		})
	})
	return f.result(err)
}

func churnEndpoints(network string) result {
	n := number("SOAK_ENDPOINTS", 32)
	f := &figures{promise: "churn"}
	e, err := newAttacher(network)
	if err != nil {
		return result{err: err}
	}
	defer unix.Close(e.home)
	f.state("endpoints a round, at most 32 calls at once", fmt.Sprint(n))
	err = f.rounds(number("SOAK_ROUNDS", 4), func(int) error {
		attached := make([]*attachment, n)
		err := inCrowd(n, func(i int) (err error) {
			attached[i], err = e.attach(i)
			return err
		})
		// what was attached goes, whatever failed
		err = errors.Join(err, inCrowd(n, func(i int) error { return attached[i].detach() }))
		e.plugin.CloseIdleConnections()
		return err
	})
	for _, method := range slices.Sorted(maps.Keys(e.took)) {
		took := e.took[method]
		longest := slices.Max(took)
		text := fmt.Sprintf("p50 %s, p99 %s, longest %s of %d", percentile(took, 50), percentile(took, 99), longest.Round(time.Millisecond), len(took))
		if strings.HasPrefix(method, own) {
			f.state(method, text)
		} else {
			f.soaked(method, text, "< 5 s each", longest < 5*time.Second)
		}
	}
	return f.result(err)
}

// attacher is to the plugin as an engine, for a network that the real one has made.
type attacher struct {
	network, pool string
	plugin        *http.Client
	home          int // the host's network namespace

	mu   sync.Mutex
	took map[string][]time.Duration // by method
}

func newAttacher(network string) (*attacher, error) {
	r := run("/", "docker", "network", "inspect", "--format", "{{.Id}} {{(index .IPAM.Config 0).Subnet}}", network)
	id, subnet, ok := strings.Cut(strings.TrimSpace(r.stdout), " ")
	if r.err != nil || !ok {
		return nil, fmt.Errorf("inspect network %s: %w: %s", network, r.err, r.stderr)
	}
	home, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return &attacher{network: id, pool: "mustang-local/" + subnet, plugin: unixClient("/run/docker/plugins/mustang.sock"), home: home, took: map[string][]time.Duration{}}, err
}

// attachment is an endpoint with its sandbox, in which something listens.
type attachment struct {
	sandbox  string
	listener net.Listener
	undo     []func() error
}

// call asks the plugin and keeps the time.
func (e *attacher) call(method string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	begin := time.Now()
	reply, err := e.plugin.Post("http://plugin/"+method, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	text, err := readAll(reply)
	took := time.Since(begin)
	e.mu.Lock()
	e.took[method] = append(e.took[method], took)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if reply.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", method, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// own begins the name of what the kernel does for the engine alone.
const own = "beside it: "

// itself keeps the time of what an engine does itself.
func (e *attacher) itself(what string, do func() error) error {
	begin := time.Now()
	err := do()
	e.mu.Lock()
	e.took[own+what] = append(e.took[own+what], time.Since(begin))
	e.mu.Unlock()
	return err
}

type endpointIDs struct{ NetworkID, EndpointID string }

// attach does what an engine does for a container that publishes a port, and asks who listens in its sandbox, directly and by the port. What
// it returns can be detached, whatever failed.
func (e *attacher) attach(i int) (a *attachment, err error) {
	a = &attachment{sandbox: fmt.Sprintf("/run/soak/%d", i)}
	if err := e.itself("sandbox made", func() error { return makeSandbox(a.sandbox) }); err != nil {
		return a, err
	}
	a.undo = append(a.undo, func() error { return removeSandbox(a.sandbox) })
	var id [32]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	ids := endpointIDs{e.network, hex.EncodeToString(id[:])}
	var leased struct{ Address string }
	if err := e.call("IpamDriver.RequestAddress", map[string]string{"PoolID": e.pool}, &leased); err != nil {
		return a, err
	}
	addr, err := netip.ParsePrefix(leased.Address)
	if err != nil {
		return a, err
	}
	a.undo = append(a.undo, func() error {
		return e.call("IpamDriver.ReleaseAddress", map[string]string{"PoolID": e.pool, "Address": addr.Addr().String()}, nil)
	})
	create := map[string]any{"NetworkID": e.network, "EndpointID": ids.EndpointID, "Interface": map[string]string{"Address": leased.Address}}
	if err := e.call("NetworkDriver.CreateEndpoint", create, nil); err != nil {
		return a, err
	}
	a.undo = append(a.undo, func() error { return e.call("NetworkDriver.DeleteEndpoint", ids, nil) })
	join := map[string]string{"NetworkID": e.network, "EndpointID": ids.EndpointID, "SandboxKey": a.sandbox}
	var joined struct{ InterfaceName struct{ SrcName string } }
	if err := e.call("NetworkDriver.Join", join, &joined); err != nil {
		return a, err
	}
	device := joined.InterfaceName.SrcName
	if err := e.itself("device moved in", func() (err error) { a.listener, err = e.moveIn(a.sandbox, device, addr); return err }); err != nil {
		return a, errors.Join(err, e.call("NetworkDriver.Leave", ids, nil))
	}
	a.undo = append(a.undo,
		func() error {
			return e.itself("device moved out", func() error { return e.moveOut(a.sandbox, device) })
		},
		func() error { return e.call("NetworkDriver.Leave", ids, nil) })
	port := uint16(firstPort + i)
	publish := map[string]any{"NetworkID": e.network, "EndpointID": ids.EndpointID, "Options": map[string]any{
		"com.docker.network.portmap": []map[string]uint16{{"Proto": unix.IPPROTO_TCP, "Port": 80, "HostPort": port}},
	}}
	if err := e.call("NetworkDriver.ProgramExternalConnectivity", publish, nil); err != nil {
		return a, err
	}
	a.undo = append(a.undo, func() error { return e.call("NetworkDriver.RevokeExternalConnectivity", ids, nil) })
	return a, errors.Join(answers(netip.AddrPortFrom(addr.Addr(), 80)), answers(netip.AddrPortFrom(hostAddr, port)))
}

// firstPort is the first of the host's ports that a churn publishes, below those that the kernel gives to clients.
const firstPort = 20000

var hostAddr = netip.MustParseAddr("192.0.2.2")

// detach undoes attach, in the order in which engines do.
func (a *attachment) detach() (err error) {
	if a == nil {
		return nil
	}
	if a.listener != nil {
		a.listener.Close()
	}
	for _, undo := range slices.Backward(a.undo) {
		err = errors.Join(err, undo())
	}
	return err
}

// answers connects from the host, and reads to the end.
func answers(target netip.AddrPort) error {
	conn, err := net.DialTimeout("tcp", target.String(), patience(2*time.Second))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience(2 * time.Second))); err != nil {
		return err
	}
	text, err := io.ReadAll(conn)
	if err == nil && string(text) != greeting {
		err = fmt.Errorf("%s answers %q", target, text)
	}
	return err
}

const greeting = "well\n"

// makeSandbox makes a network namespace that a file keeps.
func makeSandbox(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	return <-done
}

func removeSandbox(path string) error {
	return errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path))
}

// moveIn gives a sandbox its device, as an engine does after Join, and begins to listen there.
func (e *attacher) moveIn(sandbox, device string, addr netip.Prefix) (listener net.Listener, err error) {
	ns, err := unix.Open(sandbox, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns)
	link, err := netlink.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", device, err)
	}
	if err := netlink.LinkSetNsFd(link, ns); err != nil {
		return nil, fmt.Errorf("move %s into its sandbox: %w", device, err)
	}
	err = inNetns(sandbox, func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		ip := &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}}
		if err := errors.Join(netlink.LinkSetName(link, "eth0"), netlink.AddrAdd(link, ip), netlink.LinkSetUp(link)); err != nil {
			return err
		}
		gateway := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IP(addr.Masked().Addr().Next().AsSlice())}
		if err := netlink.RouteAdd(gateway); err != nil {
			return fmt.Errorf("add the default route: %w", err)
		}
		listener, err = net.Listen("tcp", ":80")
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(greeting)) // its client says what it got
			conn.Close()
		}
	}()
	return listener, nil
}

// moveOut takes the device back to the host, as an engine does after Leave. The daemon may have removed it by then: the real engine, which it asks
// every 10 s, knows nothing of these endpoints.
func (e *attacher) moveOut(sandbox, device string) error {
	err := inNetns(sandbox, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, device), netlink.LinkSetNsFd(link, e.home))
	})
	if gone := new(netlink.LinkNotFoundError); errors.As(err, gone) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
