# Varnish in front of a program that serves Server-Sent Events at 127.0.0.1:8080.

vcl 4.1;

backend program {
	.host = "127.0.0.1";
	.port = "8080";
}

sub vcl_recv {
	# A stream is no object for the cache. In a pipe Varnish hands on bytes as
	# they come, and when one side closes its connection closes the other.
	#
	# Varnish gives up on a pipe that is silent for as long as its parameter
	# pipe_timeout, 60 s. That must be longer than Broker.KeepAlive, 15 s by
	# default.
	if (req.http.Accept ~ "text/event-stream") {
		return (pipe);
	}
}
