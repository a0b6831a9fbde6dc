// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

// Engines before 28 name a sandbox at Join that comes into being when the container's task starts.
const (
	sandboxWait  = 60 * time.Second
	sandboxPoll  = 5 * time.Millisecond
	sandboxRetry = time.Second // after an error other than that it does not exist
)

// Join puts an endpoint into a sandbox, which may not exist yet. Joining again returns the same.
func (m *Manager) Join(_ context.Context, _, id, sandbox string) (Join, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.endpoints[id]
	if !ok || e.Partial {
		return Join{}, fmt.Errorf("endpoint %s: %w", id, ErrNotFound)
	}
	n, ok := m.networks[e.NetworkID]
	if !ok {
		return Join{}, fmt.Errorf("network %s of the endpoint %s: %w", e.NetworkID, id, ErrNotFound)
	}
	if e.Sandbox != "" && e.Sandbox != sandbox {
		if err := m.leave(e); err != nil {
			return Join{}, err
		}
	}
	known := e.Sandbox == sandbox
	e.Sandbox = sandbox
	routes, err := m.routes(n, e)
	if err != nil {
		return Join{}, errors.Join(err, m.leave(e))
	}
	cookie, err := m.links.Cookie(sandbox)
	switch {
	case err == nil:
		if err := m.enter(n, e, cookie); err != nil {
			return Join{}, errors.Join(err, m.leave(e))
		}
	case !errors.Is(err, link.ErrNoNetns):
		return Join{}, errors.Join(err, m.leave(e))
	default:
		if !known {
			if err := m.put(bucketEndpoints, e.ID, e); err != nil {
				e.Sandbox = ""
				return Join{}, fmt.Errorf("record the endpoint %s: %w", e.ID, err)
			}
		}
		m.await(e.ID, sandbox)
	}
	j := Join{
		SrcName: e.PeerIf, DstPrefix: "eth", DstName: e.IfName,
		Routes: routes, DisableGatewayService: n.Internal,
	}
	if n.viaHost() {
		j.Hops, j.Routes = m.hops(n, e, j.Routes), nil
	}
	if m.mode(n).leadsOut(n) {
		for _, gw := range n.gatewaysOf(e) {
			if gw.Is4() {
				j.Gateway = gw
			} else {
				j.Gateway6 = gw
			}
		}
	}
	return j, nil
}

// routes are what an endpoint reaches on-link besides its own subnet: the network's VIPs and its other
// subnets, for which the host's end answers neighbour discovery.
func (m *Manager) routes(n *Network, e *Endpoint) (out []netip.Prefix, err error) {
	onLink, err := m.mode(n).onLink(n)
	if err != nil {
		return nil, err
	}
	for _, p := range slices.Concat(n.VIPs, n.Subnets(), onLink, m.handBlocks(n, e)) {
		has4, has6 := e.IPv4.IsValid(), e.IPv6.IsValid()
		if p.Addr().Is4() && !has4 || p.Addr().Is6() && !has6 {
			continue
		}
		if has4 && p.Contains(e.IPv4.Addr()) || has6 && p.Contains(e.IPv6.Addr()) {
			continue
		}
		out = append(out, p)
	}
	return out, nil
}

// await enters the sandbox as soon as it exists, unless the endpoint leaves before.
func (m *Manager) await(id, sandbox string) {
	m.waitFor(waiting{id, sandboxOf}, sandbox, func(ctx context.Context) (bool, error) {
		cookie, err := m.links.Cookie(sandbox)
		if errors.Is(err, link.ErrNoNetns) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return true, m.entered(ctx, id, cookie)
	})
}

// waiting is what an endpoint waits for.
type waiting struct{ endpoint, what string }

const (
	sandboxOf = "its sandbox"
	deviceIn  = "its device in the sandbox, without which it has no programs"
)

// waitFor tries until it is done, or the endpoint leaves: often at first, later and after an error now and then.
func (m *Manager) waitFor(w waiting, sandbox string, try func(context.Context) (done bool, err error)) {
	if m.rehearses {
		return
	}
	m.stopWaiting(w)
	ctx, cancel := context.WithCancel(context.Background())
	m.waiting[w] = cancel
	m.waits.Go(func() {
		defer cancel()
		log := m.log.WithFields(logrus.Fields{"endpoint": w.endpoint, "sandbox": sandbox})
		late := time.Now().Add(sandboxWait)
		pause := sandboxPoll
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			done, err := try(ctx)
			switch {
			case err != nil:
				log.WithError(err).Errorf("the endpoint and %s: trying again in %v", w.what, sandboxRetry)
				pause = sandboxRetry
			case done:
				return
			case pause == sandboxPoll && time.Now().After(late):
				log.Warnf("the endpoint has waited %v for %s, and goes on", sandboxWait, w.what)
				pause = sandboxRetry
			case time.Now().Before(late):
				pause = sandboxPoll
			}
		}
	})
}

func (m *Manager) stopWaiting(w waiting) {
	if cancel := m.waiting[w]; cancel != nil {
		cancel()
		delete(m.waiting, w)
	}
}

func (m *Manager) entered(ctx context.Context, id string, cookie uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.endpoints[id]
	if ctx.Err() != nil || e == nil {
		return nil // it left while we looked
	}
	n := m.networks[e.NetworkID]
	if n == nil {
		return nil
	}
	if err := m.enter(n, e, cookie); err != nil {
		return err
	}
	delete(m.waiting, waiting{id, sandboxOf})
	return nil
}

// enter makes a sandbox that exists a member of the network and starts answering names in it.
func (m *Manager) enter(n *Network, e *Endpoint, cookie uint64) error {
	if e.Cookie != cookie {
		if e.Cookie != 0 {
			if err := m.leaveSandbox(e); err != nil { // the path leads to another sandbox now
				return err
			}
		}
		e.Cookie = cookie
		if err := m.put(bucketEndpoints, e.ID, e); err != nil {
			e.Cookie = 0
			return fmt.Errorf("record the endpoint %s: %w", e.ID, err)
		}
	}
	if m.hasOn(cookie, nil) {
		if err := m.enterHooks(e); err != nil {
			return err
		}
	}
	if m.hasOff(cookie, nil) {
		if err := m.putTables(e, nil); err != nil {
			return err
		}
	}
	if n == nil {
		return nil
	}
	if err := m.services.PutEndpoint(m.service(e)); err != nil {
		return err
	}
	if m.noTCX && !n.Off() && m.mode(n).end() == bpf.SandboxEnd {
		return m.attachSlave(e)
	}
	return nil
}

// enterHooks makes a sandbox known to the socket hooks, as a member of all its networks.
func (m *Manager) enterHooks(e *Endpoint) error {
	cookie := e.Cookie
	sb, known, err := m.datapath.Sandbox(cookie)
	if err != nil {
		return err
	}
	sb.Cookie, sb.SocketLB = cookie, m.socketLB(cookie, nil)
	if !known {
		// first, so that no socket begins to listen between the look at them and the hook
		if err := m.datapath.PutSandbox(sb); err != nil {
			return err
		}
	}
	if !sb.Tracked {
		// while nothing listens, the hook has missed nothing
		listens, err := m.links.Listens(e.Sandbox)
		sb.Tracked = err == nil && !listens
	}
	if m.resolver != nil && m.wantsNames(cookie, nil) {
		if sb.DNSPort, err = m.resolver.Add(cookie, e.Sandbox); err != nil {
			// names keep the engine's answers
			m.log.WithError(err).WithField("endpoint", e.ID).Warn("answer names in a sandbox")
		}
	}
	if err := m.datapath.PutSandbox(sb); err != nil {
		return err
	}
	for _, number := range m.networksOf(cookie, nil) {
		if err := m.datapath.PutMember(cookie, number); err != nil {
			return err
		}
	}
	return nil
}

// socketLB tells whether the sockets of a sandbox are balanced when they connect: unless one of its
// networks, other than through the endpoint without, asks for packets only.
func (m *Manager) socketLB(cookie uint64, without *Endpoint) bool {
	for _, e := range m.endpoints {
		n := m.networks[e.NetworkID]
		if e != without && e.Cookie == cookie && n != nil && n.Options.LB == LBPacket {
			return false
		}
	}
	return true
}

// Leave takes an endpoint out of its sandbox. Leaving twice, or never having joined, is no error.
func (m *Manager) Leave(_ context.Context, _, id string) error {
	m.services.Gone(id) // before anything waits: no new flow shall reach what is being taken down
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.endpoints[id]
	if !ok {
		return nil
	}
	m.services.Gone(id) // again: it may have entered a late sandbox while we waited
	return m.leave(e)
}

// leave undoes Join and enter.
func (m *Manager) leave(e *Endpoint) error {
	m.stopWaiting(waiting{e.ID, sandboxOf})
	m.stopWaiting(waiting{e.ID, deviceIn})
	if err := m.unpublish(e); err != nil {
		return err
	}
	if e.Sandbox == "" {
		return nil
	}
	if e.Cookie != 0 {
		if err := m.leaveSandbox(e); err != nil {
			return fmt.Errorf("take the endpoint %s out of its sandbox: %w", e.ID, err)
		}
	}
	sandbox, cookie := e.Sandbox, e.Cookie
	e.Sandbox, e.Cookie = "", 0
	if e.Partial {
		return nil // its record goes next
	}
	if err := m.put(bucketEndpoints, e.ID, e); err != nil {
		e.Sandbox, e.Cookie = sandbox, cookie // so that Leave can be repeated
		return fmt.Errorf("record the endpoint %s: %w", e.ID, err)
	}
	return nil
}

// leaveSandbox ends a membership, and the sandbox when it was the last one.
func (m *Manager) leaveSandbox(e *Endpoint) error {
	if err := m.leaveTables(e); err != nil {
		return err
	}
	last, sameNetwork := true, false
	for _, other := range m.endpoints {
		if other.ID != e.ID && other.Cookie == e.Cookie {
			last = false
			sameNetwork = sameNetwork || other.NetworkID == e.NetworkID
		}
	}
	if n := m.networks[e.NetworkID]; n != nil && !sameNetwork {
		if err := m.datapath.DeleteMember(e.Cookie, n.Number); err != nil {
			return err
		}
	}
	if !last && !m.hasOn(e.Cookie, e) { // the tables look after the others
		return m.datapath.DeleteMember(e.Cookie, 0)
	}
	if !last {
		sb, known, err := m.datapath.Sandbox(e.Cookie)
		if lb := m.socketLB(e.Cookie, e); err == nil && known && sb.SocketLB != lb {
			sb.SocketLB = lb
			err = m.datapath.PutSandbox(sb)
		}
		return err
	}
	if m.resolver != nil {
		m.resolver.Remove(e.Cookie)
	}
	return m.datapath.DeleteMember(e.Cookie, 0)
}

var _ Datapath = (*bpf.Datapath)(nil)
