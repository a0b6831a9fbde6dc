// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"net/netip"
	"os"
)

// pair is a client's and a server's sandbox, connected in one way.
type pair struct {
	mode           string
	ebpf           bool
	client, server sandbox
	direct, vip    netip.Addr // of the server; vip is invalid where there is none
	// prepare makes the VIP work, translated by via beside n-1 other services; nil without a VIP. Asking for what
	// is so already costs nothing.
	prepare func(via string, n int) error
}

// sides are the ways from the client to the server.
func (p *pair) sides() []side {
	out := []side{{Mode: p.mode, EBPF: p.ebpf, Path: pathDirect}}
	if p.vip.IsValid() {
		out = append(out, side{Mode: p.mode, EBPF: p.ebpf, Path: pathVIP, Via: p.via()})
	}
	return out
}

// via is what translates the VIP unless connection rates are compared.
func (p *pair) via() string {
	if p.ebpf {
		return viaEBPF
	}
	return viaNftables
}

// close lets go of the sandboxes; a loopback pair has one.
func (p *pair) close() {
	p.client.close()
	if p.server != p.client {
		p.server.close()
	}
}

// tuneClient lets a client make many connections: their ports can be used again after a second.
func tuneClient(s sandbox) error {
	return errors.Join(s.sysctl("ipv4/tcp_tw_reuse", "1"), s.sysctl("ipv4/ip_local_port_range", "10000 65535"))
}

// The addresses are the same in every pair: each has namespaces of its own.
var (
	subnet     = netip.MustParsePrefix("192.168.10.0/24")
	gateway    = netip.MustParsePrefix("192.168.10.1/24")
	serverAddr = netip.MustParsePrefix("192.168.10.10/24")
	clientAddr = netip.MustParsePrefix("192.168.10.11/24")
	plainVIP   = netip.MustParseAddr("10.96.0.100")
)

// newPair makes the two sandboxes.
func newPair(mode string, ebpf bool) (*pair, error) {
	client, err := newSandbox()
	if err != nil {
		return nil, err
	}
	server, err := newSandbox()
	if err != nil {
		client.close()
		return nil, err
	}
	p := &pair{mode: mode, ebpf: ebpf, client: client, server: server, direct: serverAddr.Addr()}
	if err := tuneClient(client); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// modeLoopback is one sandbox that talks to itself: what the machine can do without any network.
const modeLoopback = "loopback"

func newLoopback() (*pair, error) {
	s, err := newSandbox()
	if err != nil {
		return nil, err
	}
	if err := tuneClient(s); err != nil {
		s.close()
		return nil, err
	}
	return &pair{mode: modeLoopback, client: s, server: s, direct: netip.MustParseAddr("127.0.0.1")}, nil
}

// inherit makes a pair of containers' namespaces, which Run has opened.
func (d dockerPair) inherit() (*pair, error) {
	p := &pair{
		mode: d.Mode, direct: d.Server,
		client: sandbox{os.NewFile(uintptr(d.ClientNetns), "client")},
		server: sandbox{os.NewFile(uintptr(d.ServerNetns), "server")},
	}
	// the engine's rules for its resolver load conntrack in both
	return p, errors.Join(tuneClient(p.client), shortenConntrack(p.client), shortenConntrack(p.server))
}
