// A reviewer in a real browser. Told what to do next by lines on standard input, tells what it saw by lines of JSON.
// Arguments: share URL, folder for screenshots. Not here: who revokes the link.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const require = createRequire(process.env.ENVFORGE_TEST_BROWSER_DIR + '/');
const { chromium } = require('playwright-core');
const [shareUrl, shots] = process.argv.slice(2);

const say = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));
const told = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// How our own pages look on a phone and in the dark: what sticks out of the window, and how well text stands out.
const VIEWS = [
  { name: 'phone', size: { width: 360, height: 740 }, scheme: 'light' },
  { name: 'phone-dark', size: { width: 360, height: 740 }, scheme: 'dark' },
  { name: 'desk-dark', size: { width: 1200, height: 800 }, scheme: 'dark' },
];
const looks = async (page, what) => {
  const seen = [];
  for (const { name, size, scheme } of VIEWS) {
    await page.setViewportSize(size);
    await page.emulateMedia({ colorScheme: scheme });
    await page.screenshot({ path: `${shots}/${what}-${name}.png` });
    const measured = await page.evaluate(() => {
      const light = (color) => {
        const parts = color.match(/[\d.]+/g).slice(0, 3).map((part) => Number(part) / 255);
        const linear = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
      };
      const ground = light(getComputedStyle(document.querySelector('main')).backgroundColor);
      const contrasts = [...document.querySelectorAll('h1, p:not(.spoken), dt, dd, li')].map((element) => {
        const ink = light(getComputedStyle(element).color);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
      });
      const sticksOut = [...document.querySelectorAll('main, main *:not(.spoken)')].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
      });
      return {
        overflow: document.documentElement.scrollWidth - innerWidth,
        sticksOut: sticksOut.map((element) => element.tagName),
        contrast: Math.min(...contrasts),
        ground,
      };
    });
    seen.push({ page: what, view: name, scheme, ...measured });
  }
  return seen;
};

const browser = await chromium.launch({
  executablePath: process.env.ENVFORGE_TEST_CHROMIUM,
  args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  const context = await browser.newContext({ viewport: { width: 1200, height: 800 } });
  const page = await context.newPage();
  const failures = [];
  page.on('pageerror', (error) => failures.push(String(error)));

  await page.goto(shareUrl);
  const share = await page.innerText('main');
  await page.screenshot({ path: `${shots}/1-share.png` });
  const before = await context.cookies();
  say('share', { text: share, cookies: before.length });

  // A second reviewer, whose waking page hears nothing and stays to be looked at.
  const still = await (await browser.newContext()).newPage();
  await still.context().route('**/.envforge/wake**', (route) => route.abort());
  await still.goto(shareUrl);
  const looked = await looks(still, 'share');
  await still.click('form button');
  await still.waitForSelector('li[data-stage]');
  looked.push(...(await looks(still, 'waking')));
  const workspaceUrl = still.url();

  await page.click('form button');
  // The waking page goes on to the app by itself, perhaps while it is being looked at.
  await page.screenshot({ path: `${shots}/2-waking.png` }).catch(() => {});
  say('opened', { url: page.url() });

  await page.waitForSelector('#live[data-state="open"]', { timeout: 60_000 });
  await page.waitForFunction(() => document.querySelector('#figure-open').textContent !== '–');
  await page.fill('#words', 'across the gateway');
  await page.click('#echo button');
  await page.waitForSelector('#echoes li');
  await page.screenshot({ path: `${shots}/3-app.png` });
  const seen = await page.evaluate(async () => ({
    orders: (await (await fetch('/api/orders')).json()).orders?.length ?? -1,
    style: (await fetch('/assets/board.css')).status,
    echo: document.querySelector('#echoes').innerText,
    cookie: document.cookie,
    socket: document.querySelector('#live').dataset.state,
  }));
  say('app', { ...seen, url: page.url(), failures });

  await told.next(); // the link is being revoked now
  const revoked = Date.now();
  await page.waitForFunction(() => document.querySelector('#live')?.dataset.state !== 'open', null, { timeout: 5_000 });
  const socketMs = Date.now() - revoked;
  const api = await page.evaluate(async () => {
    const answer = await fetch('/api/orders');
    return { status: answer.status, type: answer.headers.get('content-type'), body: await answer.json(), redirected: answer.redirected };
  });
  await page.reload();
  await page.screenshot({ path: `${shots}/4-ended.png` });
  say('revoked', { socketMs, api, text: await page.innerText('main') });

  await still.goto(workspaceUrl);
  looked.push(...(await looks(still, 'ended')));
  say('looks', { looked });

  const again = await context.newPage();
  await again.goto(shareUrl);
  say('share-again', { text: await again.innerText('main'), buttons: await again.locator('form button').count() });
} finally {
  await browser.close();
}
