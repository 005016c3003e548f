// A server and a client of net/http, as most programs in Go have them; the client says in lines what it saw, and the
// same whether a mesh lies between the two or not. Go's listeners are of MPTCP where the kernel has it.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2])
	case "ask":
		ask(os.Args[2])
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func serve(host string) {
	var cancelled atomic.Int64
	http.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "hello %s", client)
	})
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		// A server of HTTP/1 that has begun to answer reads no more.
		must(w.Write(must(io.ReadAll(r.Body))))
	})
	http.HandleFunc("/drip", func(w http.ResponseWriter, r *http.Request) {
		for n := 0; n < 5; n++ {
			fmt.Fprintf(w, "%d\n", n)
			w.(http.Flusher).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	http.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		cancelled.Add(1)
	})
	http.HandleFunc("/cancelled", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, cancelled.Load())
	})
	http.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("content-length", "1000000")
		w.Write(make([]byte, 1000))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	bytewise := must(net.Listen("tcp", net.JoinHostPort(host, "8082")))
	go func() {
		for {
			go turnAround(must(bytewise.Accept()).(*net.TCPConn))
		}
	}()
	listener := must(net.Listen("tcp", net.JoinHostPort(host, "8080")))
	fmt.Println("listens")
	must(0, http.Serve(listener, nil))
}

// Answers when the client has said that it is done.
func turnAround(c *net.TCPConn) {
	said := must(io.ReadAll(c))
	fmt.Fprintf(c, "%d bytes", len(said))
	c.CloseWrite()
	c.Close()
}

func ask(host string) {
	base := "http://" + net.JoinHostPort(host, "8080")
	fmt.Println("one connection:", one(http.DefaultClient, base, 200))
	closing := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	fmt.Println("a connection each:", one(closing, base, 100))
	mptcp := &net.Dialer{}
	askForMultipath(mptcp)
	multipath := &http.Client{Transport: &http.Transport{DialContext: mptcp.DialContext, DisableKeepAlives: true}}
	fmt.Println("asking for MPTCP:", one(multipath, base, 20))
	fmt.Println("many at once:", many(base))
	fmt.Println("16 MiB there and back:", large(base))
	fmt.Printf("as it comes: %q\n", get(base+"/drip"))
	fmt.Println("cancelled:", cancel(base))
	fmt.Println("aborted:", aborted(base))
	fmt.Println("half-closed:", halfClosed(host))
	fmt.Println("nobody listens:", nobody(host))
	fmt.Println("names:", names(host))
	fmt.Println("deadline:", deadline(host))
}

func get(url string) string {
	answer := must(http.Get(url))
	defer answer.Body.Close()
	return string(must(io.ReadAll(answer.Body)))
}

// Requests one after the other: how many connections they took, and what was answered.
func one(client *http.Client, base string, requests int) string {
	connections := 0
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if !info.Reused {
			connections++
		}
	}}
	ctx := httptrace.WithClientTrace(context.Background(), trace)
	var said string
	for n := 0; n < requests; n++ {
		request := must(http.NewRequestWithContext(ctx, "GET", base+"/hello", nil))
		answer := must(client.Do(request))
		said = string(must(io.ReadAll(answer.Body)))
		answer.Body.Close()
	}
	return fmt.Sprintf("%d connections, %q", connections, said)
}

func many(base string) string {
	var group sync.WaitGroup
	var right atomic.Int64
	for n := 0; n < 32; n++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: n%2 == 0}}
			for turn := 0; turn < 20; turn++ {
				body := strings.Repeat(fmt.Sprint(n), 3000)
				answer := must(client.Post(base+"/echo", "text/plain", strings.NewReader(body)))
				if string(must(io.ReadAll(answer.Body))) == body {
					right.Add(1)
				}
				answer.Body.Close()
			}
		}(n)
	}
	group.Wait()
	return fmt.Sprint(right.Load())
}

func large(base string) bool {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	answer := must(http.Post(base+"/echo", "application/octet-stream", bytes.NewReader(body)))
	defer answer.Body.Close()
	hash := sha256.New()
	must(io.Copy(hash, answer.Body))
	expected := sha256.Sum256(body)
	return bytes.Equal(hash.Sum(nil), expected[:])
}

// The server hears of it.
func cancel(base string) string {
	before := get(base + "/cancelled")
	ctx, stop := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer stop()
	request := must(http.NewRequestWithContext(ctx, "GET", base+"/hang", nil))
	_, err := http.DefaultClient.Do(request)
	for get(base+"/cancelled") == before {
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Sprint(errors.Is(err, context.DeadlineExceeded))
}

func aborted(base string) string {
	answer := must(http.Get(base + "/abort"))
	defer answer.Body.Close()
	read, err := io.ReadAll(answer.Body)
	return fmt.Sprintf("%d bytes, %v", len(read), err)
}

func halfClosed(host string) string {
	c := must(net.Dial("tcp", net.JoinHostPort(host, "8082"))).(*net.TCPConn)
	defer c.Close()
	must(c.Write(make([]byte, 100_000)))
	must(0, c.CloseWrite())
	return string(must(io.ReadAll(c)))
}

// Refused; or, where the agent takes the connection first, reset.
func nobody(host string) bool {
	c, err := net.Dial("tcp", net.JoinHostPort(host, "8081"))
	if err != nil {
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return errors.Is(err, syscall.ECONNRESET)
}

func names(host string) string {
	c := must(net.Dial("tcp", net.JoinHostPort(host, "8082")))
	defer c.Close()
	local, _, _ := net.SplitHostPort(c.LocalAddr().String())
	return local + " to " + c.RemoteAddr().String()
}

func deadline(host string) bool {
	c := must(net.Dial("tcp", net.JoinHostPort(host, "8082")))
	defer c.Close()
	must(0, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}
