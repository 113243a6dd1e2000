// jvm: orders in a Java heap. The contract is that of bench/functions.
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public class Main {
    record Line(String article, int count, double price) {}

    record Order(long id, String customer, List<Line> lines) {}

    static final Pattern BODY = Pattern.compile("\\s*\\{\\s*\"n\"\\s*:\\s*(\\d{1,10})\\s*\\}\\s*");
    static final Map<Long, Order> ORDERS = new HashMap<>();
    static final Map<String, Double> TOTALS = new HashMap<>();
    static long served;

    // A word, a common one more often than a rare one.
    static String word(Random random) {
        StringBuilder letters = new StringBuilder();
        for (long rest = (long) Math.pow(20000, random.nextDouble()) * 7919; rest > 0; rest /= 26) {
            letters.append((char) ('a' + rest % 26));
        }
        return letters.toString();
    }

    static void reply(HttpExchange exchange, int status, String body) throws IOException {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        exchange.getResponseHeaders().set("Content-Type", "application/json");
        exchange.getResponseHeaders().set("Connection", "close");
        exchange.sendResponseHeaders(status, bytes.length);
        exchange.getResponseBody().write(bytes);
        exchange.close();
    }

    static String answer(long seed, long n) {
        double sum = 0;
        for (int step = 0; step < 200; step++) {
            Order order = ORDERS.get((n * 31 + step * 97) % ORDERS.size());
            double total = order.lines().stream().mapToDouble(line -> line.count() * line.price()).sum();
            TOTALS.put(order.customer(), total);
            sum += total;
        }
        served++;
        return "{\"function\":\"jvm\",\"seed\":" + seed + ",\"served\":" + served + ",\"n\":" + n
            + ",\"result\":" + Math.round(sum * 100) + "}";
    }

    public static void main(String[] arguments) throws IOException {
        String text = System.getenv("MEDES_SEED");
        long seed = text == null ? new SecureRandom().nextLong() & 0xffffffffffffL : Long.parseLong(text);
        Random random = new Random(seed);
        for (long id = 0; id < 20000; id++) {
            List<Line> lines = new ArrayList<>();
            for (int line = 0; line < 1 + random.nextInt(5); line++) {
                lines.add(new Line(word(random), 1 + random.nextInt(9), random.nextInt(10000) / 100.0));
            }
            ORDERS.put(id, new Order(id, word(random), lines));
        }
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 16);
        server.createContext("/", exchange -> {
            String path = exchange.getRequestURI().getPath();
            if (exchange.getRequestMethod().equals("GET") && path.equals("/ready")) {
                reply(exchange, 200, "{\"ready\":true}");
                return;
            }
            byte[] body = exchange.getRequestBody().readNBytes(65536);
            Matcher matched = BODY.matcher(new String(body, StandardCharsets.UTF_8));
            if (!exchange.getRequestMethod().equals("POST") || !path.equals("/") || !matched.matches()) {
                reply(exchange, 400, "{\"error\":\"not a request of this contract\"}");
                return;
            }
            reply(exchange, 200, answer(seed, Long.parseLong(matched.group(1))));
        });
        server.start();
    }
}
